"""Many cells: trials in processes, through Ray or in this one."""
