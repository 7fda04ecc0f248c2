"""Where selected tokens meet the transformer."""
