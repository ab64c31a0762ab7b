"""What a run tells about itself: statistics, progress, loggers, the report, sample grids."""
