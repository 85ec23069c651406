"""What the command line shows: tables on stdout, progress on stderr. The only user of rich."""
