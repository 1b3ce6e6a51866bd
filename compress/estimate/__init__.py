"""What a run will take, before it runs: parameters, bytes, memory, time. From config.json alone; nothing is loaded."""
