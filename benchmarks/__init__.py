"""Every figure of the README comes from here: scripts that write JSON and a picture."""
