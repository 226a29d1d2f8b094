"""What an endless answer needs in front of the engine."""
