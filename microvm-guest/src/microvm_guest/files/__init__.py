"""Files between host and guest: records on the wire, directories opened one within another here."""
