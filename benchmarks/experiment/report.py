"""Report."""


def write_report(results, docs):
    """Nothing yet."""
