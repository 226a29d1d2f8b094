"""What an operator sets, as ``additional_config`` carries it to every process."""
