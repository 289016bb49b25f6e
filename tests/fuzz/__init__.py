"""Damage files of every kind that this project reads back, and read them.

`make test` tries a few hundred mutations; `make fuzz MINUTES=30` goes on for as long as it is told. Each target writes
valid files, and reads them through the functions that the commands use. There are three outcomes: an error that names
the file, the answer of the untouched files, or a failure (another exception, a message without a file, another answer).
"""
