"""Commands on data sets: benchmark, statistics, preview, conversion."""
