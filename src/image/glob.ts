/** Patterns for paths, as shells write them. */

/**
 * Whether a path matches `glob`: `*` and `?` stand for anything but slashes, `**` for slashes too, `[…]` for itself. A
 * pattern that does not begin with a slash matches at any depth.
 */
export function globMatcher(glob: string): (path: string) => boolean {
  const source = (glob.startsWith('/') ? glob : `/**/${glob}`).replace(
    /\/\*\*(?=\/)|\*\*|\*|\?|[^*?]/gu,
    (part) => {
      if (part === '/**') return '(?:/.*)?';
      if (part === '**') return '.*';
      if (part === '*') return '[^/]*';
      return part === '?' ? '[^/]' : part.replace(/[\\^$.|+()[\]{}/]/u, '\\$&');
    },
  );
  const pattern = new RegExp(`^${source}$`, 'su');
  return (path) => pattern.test(path);
}
