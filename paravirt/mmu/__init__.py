"""Memory virtualisation, one technique a file."""
