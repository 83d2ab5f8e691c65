"""What the check-in service sends about a flight: its passengers and its departure time, and the seats they revoke."""
