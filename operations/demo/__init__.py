"""The demo airline: its timetable, its passengers, and how they are loaded."""
