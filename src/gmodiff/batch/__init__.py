"""Batches: a card full of brackets, here or on a cluster (`gmodiff batch`).

storage        paths and URLs
card           folders, lists and URLs to photos
missing        photos that cannot be read, and the brackets that seem to miss them
plan_file      the plan: which photos make which picture; as a table, and as JSON to edit
manifest       what was done, line by line
capacity       cores and memory
one_set        one set, from its photos to its picture, wherever it runs
workers        processes here;   cluster   workers of dask elsewhere
run            the batch;   watcher   what it tells while it runs
contact_sheet  the report;   wording   counts, printable names, long lists
command        `gmodiff batch`
"""
