"""Many runs at once: what a run of a sweep returns, and the page that says which of them to ship.

settings.py    what a run returns to the sweeper, how many run at a time
points.py      finished and failed runs of a folder, one point per run
pareto.py      which runs no other beats, and the choice within a budget
table.py       sweep.csv and the table in the terminal
charts.py      quality against size and speed, as SVG
page.py        sweep.html; script.py and style.py are what it needs to answer its reader
write.py       all of it into the folder of the sweep
"""
