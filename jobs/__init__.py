"""What runs on the cluster: one file per command, and the command line. Ray lives here and only here."""
