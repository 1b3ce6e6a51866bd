"""Tells what a run did: `report.json`, `report.md`, `report.html`, a table in the terminal, a card in each artifact."""
