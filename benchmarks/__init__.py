"""The scripts behind every figure of the README; each writes JSON and a picture."""
