"""The filters that come with smtpd, one file each, found through the entry points `smtpd.filters`."""
