"""`lit-vlaa data check`: every row and image of a data file looked at before a run does so.

Rows are read one after the other and judged in processes (`rows`), which hand back facts of a few hundred bytes each;
what takes two rows to see is found as they arrive (`duplicates`); `report` sums up by source.
"""
