/* Grants to oneself: how they are mapped and given back; and frames that are exchanged. */
#include "guest.h"

#define DATA (P | RW | US | A | D | NX)
#define READ_ONLY (P | US | A | NX)

struct map { u64 address; u32 flags, reference; u16 domain; short status; u32 handle; u64 machine; };
struct unmap { u64 address, machine; u32 handle; short status; u16 pad; };

static struct map mapped;

static long grant_map(void *at, u32 flags, u16 domain)
{
    mapped = (struct map){ (u64)at, flags, 8, domain, 99, 0, 0 };
    return call(GRANT_TABLE_OP, 0, (u64)&mapped, 1, 0) ? 98 : mapped.status;
}

static long grant_unmap(void *at, u64 machine_address)
{
    struct unmap request = { (u64)at, machine_address, mapped.handle, 99, 0 };
    return call(GRANT_TABLE_OP, 1, (u64)&request, 1, 0) ? 98 : request.status;
}

void check_grants(void)
{
    u8 *table = page(), *shared = page(), *window = page(), handle[16];
    u64 frames[1], old_table = machine(table), old_window = machine(window), statuses[1];
    struct { u16 domain; u32 count; short status; u64 *frames; } setup = { DOMID_SELF, 1, 99, frames };
    struct { u32 count; u16 domain; short status; u64 *frames; } status = { 1, DOMID_SELF, 99, statuses };
    u32 version = 1;
    call(XEN_VERSION, 8, (u64)handle, 0, 0);
    check("grant.setup", call(GRANT_TABLE_OP, 2, (u64)&setup, 1, 0) | setup.status, 0);
    check("grant.table", map(table, frames[0] << 12 | DATA), 0);
    ((volatile u64 *)table)[8] = 1 | (u64)handle[15] << 16 | machine(shared) << 32;
    check("grant.of-domain-0", grant_map(window, 2, 0), -1);
    check("grant.of-nobody", grant_map(window, 2, 99), -2);
    check("grant.neither-way", grant_map(window, 0, handle[15]), -3);
    check("grant.both-ways", grant_map(window, 3, handle[15]), 0);
    check("grant.machine-address", mapped.machine, machine(shared) << 12);
    check("grant.wrong-machine-address", grant_unmap(0, machine(table) << 12), -6);
    check("grant.unmap-neither", grant_unmap(0, 0), 0);
    check("grant.unmap-by-address", grant_unmap(window, 0), 0);
    set_entry(shared, READ_ONLY);
    check("grant.still-written-by-the-device", extended(0, machine(shared), 0), -EINVAL);
    check("grant.unmap-by-machine-address", grant_unmap(0, machine(shared) << 12), 0);
    check("grant.is-over", grant_unmap(0, machine(shared) << 12), -4);
    check("grant.not-written-any-more", extended(0, machine(shared), 0), 0);
    check("grant.table-again", extended(4, machine(shared), 0), 0);
    set_entry(shared, DATA);
    check("grant.once-more", grant_map(window, 2, handle[15]), 0);
    check("grant.made-read-only", map(window, machine(shared) << 12 | READ_ONLY), 0);
    check("grant.another-entry-there", grant_unmap(window, 0), -1);
    check("grant.made-writable", map(window, machine(shared) << 12 | DATA), 0);
    check("grant.unmap", grant_unmap(window, 0), 0);
    ((volatile u64 *)table)[8] = 0;
    map(table, old_table << 12 | DATA);

    version = 2;
    check("grant.version-2", call(GRANT_TABLE_OP, 8, (u64)&version, 1, 0), 0);
    check("grant.status-frames", call(GRANT_TABLE_OP, 9, (u64)&status, 1, 0) | status.status, 0);
    check("grant.status-mapped", map(window, statuses[0] << 12 | READ_ONLY), 0);
    version = 1;
    check("grant.version-1-while-mapped", call(GRANT_TABLE_OP, 8, (u64)&version, 1, 0), -EBUSY);
    map(window, old_window << 12 | DATA);
    version = 1;
    check("grant.version-1", call(GRANT_TABLE_OP, 8, (u64)&version, 1, 0), 0);
}

struct extents { u64 *start, count; u32 order, flags; u16 domain; };

void check_exchange(void)
{
    u8 *data = page();
    u64 in[2] = { machine(data), foreign_frame() }, number = ((u64)data - BASE) >> 12, out[2] = { number, number };
    struct { struct extents in, out; u64 done; } request = { { in, 1, 0, 0, DOMID_SELF }, { out, 1, 0, 0, DOMID_SELF }, 0 };
    check("exchange.mapped", call(MEMORY_OP, 11, (u64)&request, 0, 0), -EINVAL);
    *(volatile u64 *)data = 5;
    map(data, 0);
    request.out.domain = 99;
    check("exchange.two-domains", call(MEMORY_OP, 11, (u64)&request, 0, 0), -EINVAL);
    request.out.domain = DOMID_SELF;
    request.out.count = 2;
    check("exchange.other-sizes", call(MEMORY_OP, 11, (u64)&request, 0, 0), -EINVAL);
    request.out.count = 1;
    request.out.order = request.in.order = 20;
    check("exchange.too-large", call(MEMORY_OP, 11, (u64)&request, 0, 0), -EPERM);
    request.out.order = request.in.order = 0;
    request.done = 2;
    check("exchange.done-already", call(MEMORY_OP, 11, (u64)&request, 0, 0), -EINVAL);
    request.done = 0;
    request.out.start = (u64 *)HYPERVISOR_START;
    check("exchange.into-hypervisor", call(MEMORY_OP, 11, (u64)&request, 0, 0), -EFAULT);
    request.out.start = (u64 *)UNMAPPED;
    check("exchange.unmapped-list", call(MEMORY_OP, 11, (u64)&request, 0, 0), -EFAULT);
    request.out.start = out;
    request.in.count = request.out.count = 2;
    check("exchange.second-foreign", call(MEMORY_OP, 11, (u64)&request, 0, 0), -EINVAL);
    check("exchange.first-done", request.done, 1);
    check("exchange.m2p", M2P[out[0]], number);
    in[0] = out[0];
    out[0] = number;
    request.done = 0;
    request.in.count = request.out.count = 1;
    check("exchange.good", call(MEMORY_OP, 11, (u64)&request, 0, 0), 0);
    ((u64 *)start->frames)[number] = out[0];
    check("exchange.own", map(data, out[0] << 12 | DATA), 0);
    check("exchange.cleared", *(volatile long *)data, 0);
}
