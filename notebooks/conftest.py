"""Settings of nbval that have no option."""


def pytest_collection_modifyitems(items):
    """Wait longer than five seconds for a busy machine's output, and compare no warnings or progress bars."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 120
            item.parent.skip_compare = (*item.parent.skip_compare, "stderr")
