/* Names of the overlay's own attributes, as xattrs.py and protection.py say them. */
#ifndef SNAPFS_ATTRIBUTES_H
#define SNAPFS_ATTRIBUTES_H

#define INO "trusted.overlay.snapfs.ino"
#define IMPURE "trusted.overlay.snapfs.impure"
#define METACOPY "trusted.overlay.metacopy"
#define PROTATTR "trusted.overlay.protattr"

#endif
