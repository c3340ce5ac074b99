"""Several processes as one: how they find each other, agree, and end together."""
