"""Bundles onto boxes over ssh: what is pushed, and the agent that takes it there."""
