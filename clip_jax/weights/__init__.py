"""Released weights, in and out: one table of names for each library, read in both directions."""
