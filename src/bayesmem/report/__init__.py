"""What is shown: records of runs, plots drawn from them, and a page to read."""
