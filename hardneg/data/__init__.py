"""Data that are made, not collected."""
