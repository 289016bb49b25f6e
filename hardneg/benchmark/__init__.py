"""Which negatives help, on which data, at what cost: suites of runs under one budget, and what they show."""
