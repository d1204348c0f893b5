"""Campaigns that try to make polyak lose, tear or let in something: ``make torture``."""
