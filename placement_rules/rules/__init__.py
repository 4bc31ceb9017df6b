"""The rules, one a file; their names are exported by the package."""
