"""The only modules that import a peer; each does so when it is asked for, never before."""
