"""What a request asks for: where it enters, how it is checked, what the engine core gets of it."""
