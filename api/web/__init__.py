"""The status pages: templates, ES modules and styles, and what they are filled with on the server."""
