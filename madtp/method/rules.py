"""The names of the rules by which tokens are kept, free of torch for whoever only reads a configuration."""

BATCH, SAMPLE, COVERAGE = "batch", "sample", "coverage"
RULES = (BATCH, SAMPLE, COVERAGE)
