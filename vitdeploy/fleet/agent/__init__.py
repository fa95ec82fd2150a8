"""What runs on a box: of the standard library alone, so that it receives, verifies and goes back even where no engine works."""
