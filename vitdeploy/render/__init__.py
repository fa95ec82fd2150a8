"""Results for people: tables on a terminal, Markdown in a file, progress on stderr.

What others wrote (file names, labels, metadata) is escaped here, at the sink: it must not move a cursor, fake a command of
a CI service or become markup.
"""
