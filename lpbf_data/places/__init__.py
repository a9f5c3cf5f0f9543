"""Where a data set lies: a local folder, a web server, the hub."""
