"""Reports of a run about itself: statistics, progress, loggers, the report, sample grids."""
