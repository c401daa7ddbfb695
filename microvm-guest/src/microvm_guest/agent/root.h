/* A root file system on a disk, in place of the initramfs. */

#ifndef MICROVM_ROOT_H
#define MICROVM_ROOT_H

#define ROOT_DEVICE_BYTES 64

/* As process 1, once: is "/" the kernel's initramfs? What is done to disks depends on it: an agent
 * in somebody's container is process 1 as well, and its disks are somebody else's. */
void root_look(void);

/* Mount the file system on `device`, of whatever type the kernel knows, where it can be entered.
 * One that can't be written gets a layer in memory over it. What fails is told on the console, and
 * the machine ends: there is nothing to run. */
void root_mount(const char *device);

/* Make what was mounted "/" and give the initramfs's memory back. Nothing may be mounted in it any
 * more: /proc, /sys and /dev are mounted anew afterwards. */
void root_enter(void);

/* Before the machine ends: no disk's file system is left in need of a check or a journal replay. */
void root_settle(void);

#endif
