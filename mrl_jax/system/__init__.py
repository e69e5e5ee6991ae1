"""What the program shares with the machine: files, the terminal, processes, and the errors that users read."""
