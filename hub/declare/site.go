package declare

import (
	"net/netip"
	"time"

	"causeway/hub/api"
	"causeway/hub/state"
)

// site makes or changes a site. What its document leaves out stays.
func (a *apply) site(doc api.SiteDocument) error {
	if err := checkName("site", doc.Name); err != nil {
		return err
	}
	for _, p := range doc.Ranges {
		if err := checkPrefix("ranges", p); err != nil {
			return err
		}
	}
	a.step.Object = "site " + doc.Name
	before, there := a.d.Sites.Find(doc.Name)
	if !there {
		a.step.Action = "create"
		a.differs("name", "", doc.Name)
		if err := a.d.Add(state.SiteCreated{Name: doc.Name, Ranges: sorted(doc.Ranges)}); err != nil {
			return err
		}
		a.differs("ranges", "", join(a.d.Sites.Get(doc.Name).Ranges))
	} else if want := sorted(doc.Ranges); doc.Ranges != nil && join(want) != join(sorted(before.Ranges)) {
		a.differs("ranges", join(before.Ranges), join(want))
		if err := SetRanges(a.d, doc.Name, want, a.live); err != nil {
			return err
		}
	}
	if err := SetSite(a.d, doc.Name, doc.MaxAge, doc.RotateKeys); err != nil {
		return err
	}
	after := a.d.Sites.Get(doc.Name)
	if doc.MaxAge != 0 {
		was := ""
		if there {
			was = age(before.MaxAge)
		}
		a.differs("max_age", was, age(after.MaxAge))
	}
	if doc.RotateKeys != 0 {
		was := ""
		if there {
			was = rotate(before.RotateKeys)
		}
		a.differs("rotate_keys", was, rotate(after.RotateKeys))
	}
	return nil
}

func age(d time.Duration) string {
	if d == 0 {
		return "forever"
	}
	return api.MaxAge(d).String()
}

func rotate(d time.Duration) string {
	if d == 0 {
		return "never"
	}
	return api.RotateKeys(d).String()
}

// SetRanges replaces a site's ranges, with what its nodes announce that waits for a decision.
func SetRanges(d *state.Draft, site string, ranges []netip.Prefix, live Live) error {
	for _, n := range d.LiveNodesOf(site) {
		d.Announced(n, live.Announced(n))
	}
	return state.SetRanges(d, site, sorted(ranges))
}

// SetSite changes what is given of a site; what is there already adds nothing.
func SetSite(d *state.Draft, name string, age api.MaxAge, every api.RotateKeys) error {
	site, err := d.FindSite(name)
	if err != nil {
		return err
	}
	if age != 0 && maxAge(age) != site.MaxAge {
		if err := state.SetMaxAge(d, name, maxAge(age)); err != nil {
			return err
		}
	}
	if every != 0 && rotateKeys(every) != site.RotateKeys {
		return state.SetRotateKeys(d, name, rotateKeys(every))
	}
	return nil
}

// maxAge is a max_age as it is stored.
func maxAge(a api.MaxAge) time.Duration {
	if a == api.Forever {
		return 0
	}
	return time.Duration(a)
}

// rotateKeys is a rotate_keys as it is stored.
func rotateKeys(r api.RotateKeys) time.Duration {
	if r == api.Never {
		return 0
	}
	return time.Duration(r)
}
