"""One module a command: require inputs, call, write, record."""
