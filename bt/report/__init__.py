"""Reports on scans, plans, differences and runs, one format a file."""
