"""What commands show, as plain values built from plain values: no maps, files or sockets here."""
