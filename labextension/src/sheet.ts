/** Puts a style sheet on the page, once for each name, whichever bundle comes first. */
export function useSheet(name: string, text: string): void {
  const id = `gm-sheet-${name}`;
  if (document.getElementById(id) === null) {
    const sheet = document.createElement('style');
    sheet.id = id;
    sheet.textContent = text;
    document.head.append(sheet);
  }
}
