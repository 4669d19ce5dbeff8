"""The subcommands of `ldm` that are more than a call: how their words are read, and what they do."""
