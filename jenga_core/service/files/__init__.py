"""Files of a team: from parts of an upload to rows that can be trained on."""
