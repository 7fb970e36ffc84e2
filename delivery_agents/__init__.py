"""The delivery agents that come with the server, one file each."""
