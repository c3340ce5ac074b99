"""report.html: what a run leaves for people to look at."""
