"""Leaves that any part may use: errors, options, atomic writes, optional packages, devices, processes."""
