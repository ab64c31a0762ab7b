"""Images, videos and interpolations from trained generators."""
